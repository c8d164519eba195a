"""Code that travels inside exported folders, where transformers has no class; it needs torch and transformers."""
