"""The data of one participant, in memory or in a folder of its own."""
