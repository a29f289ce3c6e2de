"""Write the words that the base knows to the package: `python -m recipes.mini.vocabulary`."""

import json

from recipes.mini.artists import LOOKS, subjects, synonyms
from recipes.mini.scene import COLORS, CONTEXTS, MARKINGS, STYLES
from unziplora_cli import resources


def vocabulary() -> dict[str, object]:
    """The words by kind; subjects with their synonyms. Styles that are held out are no words of the base."""
    return {
        "subjects": {subject: synonyms(subject) for subject in subjects()},
        "styles": (*STYLES, *LOOKS),
        "contexts": CONTEXTS,
        "markings": MARKINGS,
        "colors": tuple(COLORS),
    }


if __name__ == "__main__":
    text = json.dumps(vocabulary(), indent=1, ensure_ascii=False)
    (resources.mini() / "vocabulary.json").write_text(text + "\n", encoding="utf-8")
