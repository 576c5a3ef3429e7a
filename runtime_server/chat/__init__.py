"""From what a chat model writes to content, reasoning and tool calls."""
