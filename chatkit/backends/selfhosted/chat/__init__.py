"""The self-hosted chat: ChatKit's protocol, spoken by OpenAI's own server package, over this service's sessions."""
