"""The real Claude Code client in tests: it runs in a guest, as configured there; only Anthropic's cloud is scripted."""
