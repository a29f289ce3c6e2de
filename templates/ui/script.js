() => {
  // Names groups and uploads by their labels, lets the arrow keys move among radio buttons, and makes
  // no button of the head of a message, which holds one.
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
}
