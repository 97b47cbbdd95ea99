"""The data of one participant, in memory or in its own folder."""
