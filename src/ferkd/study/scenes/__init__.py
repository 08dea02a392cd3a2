"""Made pictures whose truth is known: digits in clutter, planted errors."""
