// Browsers allow the search of this site no access to its index where pages are opened as files.
if (location.protocol === "file:") {
  const input = document.querySelector(".md-search__input");
  if (input) input.placeholder = "Search works when served (see Home)";
  const note = document.getElementById("serve");
  if (note) note.hidden = false;
}
