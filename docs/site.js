// Opened as files, pages have no search: browsers keep its index from them. The front page says how to serve the site.
const note = document.getElementById("serve");
if (note && location.protocol === "file:") note.hidden = false;
