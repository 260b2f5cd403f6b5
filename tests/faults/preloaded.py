"""Modules that a run imports sooner or later: the process of fork_server.py imports them once for all runs."""

# ruff: noqa: F401
import gc

import datasets.packaged_modules.json.json
import transformers.models.bert.modeling_bert
import transformers.models.bert.tokenization_bert

import mtl_dist.training.run
import tests.distributed.worker
import tests.faults.points

gc.freeze()  # else each fork copies the pages of these imports when its garbage collector visits them
