"""Messages between server and clients, and the gates that check them (start with `records`)."""
