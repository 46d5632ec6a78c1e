"""The lab's guests: a small Linux and a boot sector."""
