"""What leaves a client: stages that encode an upload, and decode it on the server."""
