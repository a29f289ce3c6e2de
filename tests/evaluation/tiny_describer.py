"""A random vision-language model of a real class, small enough for every test."""

import json
from pathlib import Path

LETTERS = [chr(number) for number in range(33, 127)]
SPECIAL = (
    *("<pad>", "<s>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}:"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_tiny_describer(folder: Path) -> Path:
    """Write an Idefics3 (the class of SmolVLM) with random weights into ``folder``; returns ``folder``."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
        PreTrainedTokenizerFast,
    )

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end_of_utterance>",
        additional_special_tokens=list(SPECIAL[3:]),
    )
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        fast,
        image_seq_len=4,
        chat_template=TEMPLATE,
    )
    text = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = Idefics3Config(
        text_config=text, vision_config=vision, image_token_id=3, scale_factor=2, pad_token_id=0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def answer_with(model: object, folder: Path, text: str) -> object:
    """Makes ``generate`` of a loaded model return the tokens of ``text`` after its prompt."""
    import torch
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(text, return_tensors="pt").input_ids

    def generate(input_ids: torch.Tensor, **options: object) -> torch.Tensor:
        return torch.cat((input_ids, tokens), dim=1)

    model.generate = generate  # type: ignore[attr-defined]
    return model


FOX = json.dumps(
    {
        "subject": "a fox",
        "style": "watercolor style",
        "features": ["orange fur", "white dots"],
        "surroundings": "plain background",
    }
)
