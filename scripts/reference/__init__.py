"""Pages of the documentation that are made of the code: keys, parts, commands, what leaves a client."""
