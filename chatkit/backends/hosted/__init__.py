"""Sessions issued by OpenAI, until 30 November 2026. Everything that ends then is here."""
