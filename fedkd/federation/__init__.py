"""The Flower apps: ClientApp, ServerApp, the message layout, client state and checkpoints."""
