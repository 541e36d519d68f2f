"""Load-testing an OpenAI-compatible endpoint with locust; speaks HTTP only."""
