"""The server's work: knowledge in, guidance out, and the models it trains itself. No messages, no engine."""
