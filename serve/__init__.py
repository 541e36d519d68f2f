"""Starting and describing OpenAI-compatible servers."""
