"""The embedded demonstration: generated pictures, and the script that trains `demo/clip` on them."""
