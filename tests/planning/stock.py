"""Stock pre-training configurations: the settings of llm-foundry's, written out here."""

from __future__ import annotations

COMMON = """
# Dataloaders
train_loader:
  name: text
  dataset:
    local: ${variables.data_local}
    remote: ${variables.data_remote}
    split: train
    shuffle: true
    max_seq_len: ${max_seq_len}
    shuffle_seed: ${variables.global_seed}
  drop_last: true
  num_workers: 0

eval_loader:
  name: text
  dataset:
    local: ${variables.data_local}
    remote: ${variables.data_remote}
    split: val
    shuffle: false
    max_seq_len: ${max_seq_len}
    shuffle_seed: ${variables.global_seed}
  drop_last: false
  num_workers: 0

# Optimization
scheduler:
  name: cosine_with_warmup
  t_warmup: 100ba
  alpha_f: 0.1

optimizer:
  name: decoupled_adamw
  lr: 6.0e-4
  betas:
  - 0.9
  - 0.95
  eps: 1.0e-08
  weight_decay: 0.0

algorithms:
  gradient_clipping:
    clipping_type: norm
    clipping_threshold: 1.0
"""

VARIABLES = """variables:
  data_local: ./my-copy-c4
  data_remote:  # If blank, files must be present in data_local
  global_seed: 17
"""

LOGGING = """
# Logging
progress_bar: false
log_to_console: true
console_log_interval: 1ba

callbacks:
  speed_monitor:
    window_size: 10
  lr_monitor: {}
  memory_monitor: {}
  runtime_estimator: {}

# Checkpoint to local filesystem or remote object store
# save_interval: 500ba
save_overwrite: true
save_num_checkpoints_to_keep: 1  # Important, this cleans up checkpoints saved to DISK
# save_folder: ./{run_name}/checkpoints
"""

MPT_SMALL_CPU = f"""{VARIABLES}
max_seq_len: 128

# Run Name
run_name: mpt_causal_lm_cpu  # If left blank, will be read from env var $RUN_NAME

# Model
model:
  name: mpt_causal_lm
  init_device: cpu
  d_model: 16
  n_heads: 4
  n_layers: 4
  expansion_ratio: 5
  max_seq_len: ${{max_seq_len}}
  vocab_size: 50368
  attn_config:
    attn_impl: torch
  loss_fn: torch_crossentropy

# Tokenizer
tokenizer:
  name: EleutherAI/gpt-neox-20b
  kwargs:
    model_max_length: ${{max_seq_len}}
{COMMON}
max_duration: 10ba
eval_interval: 5ba
eval_first: false
eval_subset_num_batches: 5
global_train_batch_size: 256

# System
seed: ${{variables.global_seed}}
device_eval_batch_size: 16
device_train_microbatch_size: 16
# device_train_microbatch_size: auto
precision: fp32
{LOGGING}"""

MPT_1B = f"""{VARIABLES}
max_seq_len: 2048

# Run Name
run_name:  # If left blank, will be read from env var $RUN_NAME

# Model
model:
  name: mpt_causal_lm
  init_device: meta
  d_model: 2048
  n_heads: 16  # Modified 24->16 so that d_head == 128 to satisfy FlashAttention
  n_layers: 24
  expansion_ratio: 4
  max_seq_len: ${{max_seq_len}}
  vocab_size: 50368
  attn_config:
    attn_impl: flash

# Tokenizer
tokenizer:
  name: EleutherAI/gpt-neox-20b
  kwargs:
    model_max_length: ${{max_seq_len}}
{COMMON}
max_duration: 24800ba  # ~ 26B tokens
eval_interval: 2000ba
eval_first: false
eval_subset_num_batches: -1
global_train_batch_size: 512

# System
seed: ${{variables.global_seed}}
device_eval_batch_size: 4
device_train_microbatch_size: 4
precision: amp_bf16

# FSDP
fsdp_config:
  sharding_strategy: FULL_SHARD
  mixed_precision: PURE
  activation_checkpointing: false
  limit_all_gathers: true
{LOGGING}"""

GPT2_SMALL = f"""# Pretrain a gpt2 style model
{VARIABLES}
max_seq_len: 1024

# Model
model:
  name: hf_causal_lm
  pretrained_model_name_or_path: gpt2
  config_overrides:
    n_positions: ${{max_seq_len}}
  pretrained: false  # only use the architecture

# Tokenizer
tokenizer:
  name: gpt2
  kwargs:
    model_max_length: ${{max_seq_len}}
{COMMON}
max_duration: 33696ba
eval_interval: 1000ba
global_train_batch_size: 256

# System
seed: ${{variables.global_seed}}
device_eval_batch_size: 4
device_train_microbatch_size: auto
precision: amp_bf16
{LOGGING}"""

STOCK = {"mpt-small-cpu": MPT_SMALL_CPU, "mpt-1b": MPT_1B, "gpt2-small": GPT2_SMALL}
