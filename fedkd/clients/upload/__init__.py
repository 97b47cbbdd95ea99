"""Stages that encode an upload, and decode it on the server."""
