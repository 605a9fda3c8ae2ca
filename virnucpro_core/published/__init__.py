"""Models as others publish them. A run needs none of this: it reads what is written from here."""
