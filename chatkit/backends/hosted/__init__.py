"""Sessions issued by OpenAI. Everything that ends on 30 November 2026 is in this package."""
