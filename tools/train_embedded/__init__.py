"""Training of the embedded content encoder and voice on synthetic speech: `python -m train_embedded --help` lists the steps."""
