"""What can be fitted, a module each, which nothing but the list in `finetune.catalogue` names.

`network` is what those have in common that the `Trainer` trains, `save` writes a model of any of them.
"""
