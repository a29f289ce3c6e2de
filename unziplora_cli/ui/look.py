"""How the page looks, and what it tells a screen reader beyond Gradio's own labels."""

import gradio as gr

CSS = """
.gradio-container { width: 100%; max-width: 2200px !important; margin: 0 auto; }
.gradio-container { padding: 0.5rem 1rem !important; }
.gradio-container .main.fillable, #jobs .html-container { padding: 0 !important; }
.or { color: inherit !important; }
.dark button[role=tab][aria-selected=true] { color: var(--primary-200); }
.job { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 0.5rem 0.9rem; }
.job progress { width: 100%; height: 0.9rem; accent-color: #4f46e5; }
.job h2 { font-size: 1.05rem; margin: 0 0 0.2rem; }
.job p { margin: 0.2rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.job svg { width: 100%; max-height: 8rem; }
footer { display: none !important; }
input { text-overflow: ellipsis; }
#cards .grid-wrap { height: auto !important; min-height: 0; max-height: 24rem; }
#cards .grid-container { grid-template-columns: repeat(auto-fill, minmax(7rem, 1fr)) !important; }
#cards .caption-label { inset-inline: 0.3rem; max-width: none; white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 640px) { .gradio-container { padding: 0.3rem !important; } }
"""

SCRIPT = """() => {
  const name = (element, text) => text && element.setAttribute("aria-label", text.textContent.trim());
  const label = () => {
    for (const group of document.querySelectorAll("fieldset:not([aria-label])")) {
      name(group, group.querySelector("[data-testid=block-info]"));
      for (const radio of group.querySelectorAll("input[type=radio]"))
        radio.name = group.querySelector("input").name;
    }
    for (const upload of document.querySelectorAll("button[aria-dropeffect]:not([data-named])")) {
      upload.dataset.named = "";
      name(upload, upload.closest(".block").querySelector("[data-testid=block-label]"));
    }
    for (const header of document.querySelectorAll(".toast-header[role]"))
      for (const attribute of ["role", "tabindex"]) header.removeAttribute(attribute);
  };
  new MutationObserver(label).observe(document.body, {childList: true, subtree: true});
  label();
}"""
"""Names groups and uploads by their labels, lets the arrow keys move among radio buttons, and makes
no button of the head of a message, which holds one."""


def theme() -> gr.themes.Base:
    """Fonts of this machine, and colors with enough contrast."""
    base = gr.themes.Default(
        primary_hue="indigo", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
    )
    return base.set(
        color_accent="*primary_600",
        checkbox_border_color="*neutral_500",
        checkbox_border_color_dark="*neutral_400",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_background_fill_dark="#b91c1c",
        button_cancel_background_fill_hover_dark="#991b1b",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )
