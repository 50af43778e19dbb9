"""Other servers for the same job: same pictures, same model, side by side. Each runs in a virtualenv of its own."""
