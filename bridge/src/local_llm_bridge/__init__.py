"""An MCP server that hands tasks to a private local model."""

__version__ = "0.1.0"
