"""What takes in a message of MCP, over stdio or HTTP, and answers it."""
