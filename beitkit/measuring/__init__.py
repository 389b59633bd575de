"""How fast things are: contestants that take turns in one process, their memory, and what the machine itself can do.

`turns` lets contestants take turns, `statistics` says what came of it; `workload`, `ours`, `with_transformers` and `with_timm`
are what is raced, `matrix` and `flops` what it is measured against. Nothing here prints.
"""
