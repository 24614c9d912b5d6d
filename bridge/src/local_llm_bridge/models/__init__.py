"""Which model answers, when and from where: engines and what they say."""
