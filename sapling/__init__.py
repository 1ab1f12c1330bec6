"""The built-in model. Data, not code: the weights, the tokenizer, and the script that made them.

No part of the serving system imports this package; it is read as a model directory. To make the model
again, run `python -m sapling.train --out sapling`.
"""
