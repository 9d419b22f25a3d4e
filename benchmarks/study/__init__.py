"""Evidence study: when does patch-level training pay? See README.md and PLAN.md in this folder."""
