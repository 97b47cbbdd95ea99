"""The Flower ClientApp and ServerApp, and fusion strategies as Flower strategies."""
