"""Recording: run a transformers MoE model and write down what its gates chose. Needs torch and transformers.

from tracekit.recorder.models import load_model
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.prompts import read_prompts
from tracekit.recorder.recorder import record
model, tokenizer = load_model("mistralai/Mixtral-8x7B-v0.1", dtype="bfloat16", device="cuda")
record(model, tokenizer, read_prompts("prompts.jsonl"), "mixtral.trace", RecordOptions(max_new_tokens=64))
"""
