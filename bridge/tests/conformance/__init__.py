"""The official MCP conformance suite against the bridge, for both generations of the protocol."""
