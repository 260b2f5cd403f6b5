"""What a run imports, now or on its config: the fork server of fork_server.py imports it once for all of them."""

# ruff: noqa: F401
import gc

import datasets.packaged_modules.json.json
import transformers.models.bert.modeling_bert
import transformers.models.bert.tokenization_bert

import mtl_dist.training.run
import tests.distributed.worker
import tests.faults.points

gc.freeze()  # or each fork would copy the pages of what is imported here, as soon as its collector looks through them
