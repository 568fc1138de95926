"""The self-hosted chat: the ChatKit protocol, served with OpenAI's server package."""
