"""What the tensors of published checkpoints are called: one table a family, read in both directions.

Our path of a parameter -> the tensor's name, in which {layer} and {expert} stand for numbers. A row
whose parameter a model does not have, a bias say, is not used. Knows nothing of files.
"""

# Rows that Llama's descendants share.
_LLAMA = {
  'embed': 'model.embed_tokens.weight',
  'final_norm/scale': 'model.norm.weight',
  'head': 'lm_head.weight',
  'layers/attention_norm/scale': 'model.layers.{layer}.input_layernorm.weight',
  'layers/attention/query': 'model.layers.{layer}.self_attn.q_proj.weight',
  'layers/attention/query_bias': 'model.layers.{layer}.self_attn.q_proj.bias',
  'layers/attention/query_norm/scale': 'model.layers.{layer}.self_attn.q_norm.weight',
  'layers/attention/key': 'model.layers.{layer}.self_attn.k_proj.weight',
  'layers/attention/key_bias': 'model.layers.{layer}.self_attn.k_proj.bias',
  'layers/attention/key_norm/scale': 'model.layers.{layer}.self_attn.k_norm.weight',
  'layers/attention/value': 'model.layers.{layer}.self_attn.v_proj.weight',
  'layers/attention/value_bias': 'model.layers.{layer}.self_attn.v_proj.bias',
  'layers/attention/out': 'model.layers.{layer}.self_attn.o_proj.weight',
  'layers/attention/out_bias': 'model.layers.{layer}.self_attn.o_proj.bias',
  'layers/mlp_norm/scale': 'model.layers.{layer}.post_attention_layernorm.weight',
}
LLAMA = {
  **_LLAMA,
  'layers/mlp/gate': 'model.layers.{layer}.mlp.gate_proj.weight',
  'layers/mlp/gate_bias': 'model.layers.{layer}.mlp.gate_proj.bias',
  'layers/mlp/up': 'model.layers.{layer}.mlp.up_proj.weight',
  'layers/mlp/up_bias': 'model.layers.{layer}.mlp.up_proj.bias',
  'layers/mlp/down': 'model.layers.{layer}.mlp.down_proj.weight',
  'layers/mlp/down_bias': 'model.layers.{layer}.mlp.down_proj.bias',
}
GEMMA = {
  **LLAMA,
  'layers/attention_post_norm/scale': 'model.layers.{layer}.post_attention_layernorm.weight',
  'layers/mlp_norm/scale': 'model.layers.{layer}.pre_feedforward_layernorm.weight',
  'layers/mlp_post_norm/scale': 'model.layers.{layer}.post_feedforward_layernorm.weight',
}
MIXTRAL = {
  **_LLAMA,
  'layers/mlp/router': 'model.layers.{layer}.block_sparse_moe.gate.weight',
  'layers/mlp/gate': 'model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight',
  'layers/mlp/up': 'model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight',
  'layers/mlp/down': 'model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight',
}
QWEN_MOE = {
  **_LLAMA,
  'layers/mlp/router': 'model.layers.{layer}.mlp.gate.weight',
  'layers/mlp/gate': 'model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight',
  'layers/mlp/up': 'model.layers.{layer}.mlp.experts.{expert}.up_proj.weight',
  'layers/mlp/down': 'model.layers.{layer}.mlp.experts.{expert}.down_proj.weight',
  'layers/mlp/shared/gate': 'model.layers.{layer}.mlp.shared_expert.gate_proj.weight',
  'layers/mlp/shared/up': 'model.layers.{layer}.mlp.shared_expert.up_proj.weight',
  'layers/mlp/shared/down': 'model.layers.{layer}.mlp.shared_expert.down_proj.weight',
  'layers/mlp/shared_gate': 'model.layers.{layer}.mlp.shared_expert_gate.weight',
}
# One tensor holds queries, keys and values, in this order: the n-th of how many follows its name.
GPT2 = {
  'embed': 'transformer.wte.weight',
  'positions': 'transformer.wpe.weight',
  'final_norm/scale': 'transformer.ln_f.weight',
  'final_norm/bias': 'transformer.ln_f.bias',
  'head': 'lm_head.weight',
  'layers/attention_norm/scale': 'transformer.h.{layer}.ln_1.weight',
  'layers/attention_norm/bias': 'transformer.h.{layer}.ln_1.bias',
  'layers/attention/query': 'transformer.h.{layer}.attn.c_attn.weight 0/3',
  'layers/attention/query_bias': 'transformer.h.{layer}.attn.c_attn.bias 0/3',
  'layers/attention/key': 'transformer.h.{layer}.attn.c_attn.weight 1/3',
  'layers/attention/key_bias': 'transformer.h.{layer}.attn.c_attn.bias 1/3',
  'layers/attention/value': 'transformer.h.{layer}.attn.c_attn.weight 2/3',
  'layers/attention/value_bias': 'transformer.h.{layer}.attn.c_attn.bias 2/3',
  'layers/attention/out': 'transformer.h.{layer}.attn.c_proj.weight',
  'layers/attention/out_bias': 'transformer.h.{layer}.attn.c_proj.bias',
  'layers/mlp_norm/scale': 'transformer.h.{layer}.ln_2.weight',
  'layers/mlp_norm/bias': 'transformer.h.{layer}.ln_2.bias',
  'layers/mlp/up': 'transformer.h.{layer}.mlp.c_fc.weight',
  'layers/mlp/up_bias': 'transformer.h.{layer}.mlp.c_fc.bias',
  'layers/mlp/down': 'transformer.h.{layer}.mlp.c_proj.weight',
  'layers/mlp/down_bias': 'transformer.h.{layer}.mlp.c_proj.bias',
}
GROK = {
  'embed': 'model.embed_tokens.weight',
  'final_norm/scale': 'model.norm.scale',
  'head': 'lm_head.weight',
  'layers/attention_norm/scale': 'model.layers.{layer}.pre_attn_norm.scale',
  'layers/attention/query': 'model.layers.{layer}.attn.q_proj.weight',
  'layers/attention/key': 'model.layers.{layer}.attn.k_proj.weight',
  'layers/attention/value': 'model.layers.{layer}.attn.v_proj.weight',
  'layers/attention/out': 'model.layers.{layer}.attn.o_proj.weight',
  'layers/attention_post_norm/scale': 'model.layers.{layer}.post_attn_norm.scale',
  'layers/mlp_norm/scale': 'model.layers.{layer}.pre_moe_norm.scale',
  'layers/mlp/router': 'model.layers.{layer}.moe_block.gate.weight',
  'layers/mlp/gate': 'model.layers.{layer}.moe_block.experts.{expert}.linear.weight',
  'layers/mlp/up': 'model.layers.{layer}.moe_block.experts.{expert}.linear_v.weight',
  'layers/mlp/down': 'model.layers.{layer}.moe_block.experts.{expert}.linear_1.weight',
  'layers/mlp_post_norm/scale': 'model.layers.{layer}.post_moe_norm.scale',
}

# GGUF has one set of names, experts stacked; what families do otherwise stands below it.
GGUF = {
  'embed': 'token_embd.weight',
  'positions': 'position_embd.weight',
  'final_norm/scale': 'output_norm.weight',
  'final_norm/bias': 'output_norm.bias',
  'head': 'output.weight',
  'layers/attention_norm/scale': 'blk.{layer}.attn_norm.weight',
  'layers/attention_norm/bias': 'blk.{layer}.attn_norm.bias',
  'layers/attention/query': 'blk.{layer}.attn_q.weight',
  'layers/attention/query_bias': 'blk.{layer}.attn_q.bias',
  'layers/attention/query_norm/scale': 'blk.{layer}.attn_q_norm.weight',
  'layers/attention/key': 'blk.{layer}.attn_k.weight',
  'layers/attention/key_bias': 'blk.{layer}.attn_k.bias',
  'layers/attention/key_norm/scale': 'blk.{layer}.attn_k_norm.weight',
  'layers/attention/value': 'blk.{layer}.attn_v.weight',
  'layers/attention/value_bias': 'blk.{layer}.attn_v.bias',
  'layers/attention/out': 'blk.{layer}.attn_output.weight',
  'layers/attention/out_bias': 'blk.{layer}.attn_output.bias',
  'layers/attention_post_norm/scale': 'blk.{layer}.post_attention_norm.weight',
  'layers/mlp_norm/scale': 'blk.{layer}.ffn_norm.weight',
  'layers/mlp_norm/bias': 'blk.{layer}.ffn_norm.bias',
  'layers/mlp/gate': 'blk.{layer}.ffn_gate.weight',
  'layers/mlp/up': 'blk.{layer}.ffn_up.weight',
  'layers/mlp/up_bias': 'blk.{layer}.ffn_up.bias',
  'layers/mlp/down': 'blk.{layer}.ffn_down.weight',
  'layers/mlp/down_bias': 'blk.{layer}.ffn_down.bias',
  'layers/mlp_post_norm/scale': 'blk.{layer}.post_ffw_norm.weight',
}
GGUF_MOE = {
  **GGUF,
  'layers/mlp/router': 'blk.{layer}.ffn_gate_inp.weight',
  'layers/mlp/gate': 'blk.{layer}.ffn_gate_exps.weight',
  'layers/mlp/up': 'blk.{layer}.ffn_up_exps.weight',
  'layers/mlp/down': 'blk.{layer}.ffn_down_exps.weight',
  'layers/mlp/shared/gate': 'blk.{layer}.ffn_gate_shexp.weight',
  'layers/mlp/shared/up': 'blk.{layer}.ffn_up_shexp.weight',
  'layers/mlp/shared/down': 'blk.{layer}.ffn_down_shexp.weight',
  'layers/mlp/shared_gate': 'blk.{layer}.ffn_gate_inp_shexp.weight',
}
GGUF_GPT2 = {
  **GGUF,
  'layers/attention/query': 'blk.{layer}.attn_qkv.weight 0/3',
  'layers/attention/query_bias': 'blk.{layer}.attn_qkv.bias 0/3',
  'layers/attention/key': 'blk.{layer}.attn_qkv.weight 1/3',
  'layers/attention/key_bias': 'blk.{layer}.attn_qkv.bias 1/3',
  'layers/attention/value': 'blk.{layer}.attn_qkv.weight 2/3',
  'layers/attention/value_bias': 'blk.{layer}.attn_qkv.bias 2/3',
}
# BERT's encoder without a head, as sentence-transformers keeps it.
BERT = {
  'embed': 'embeddings.word_embeddings.weight',
  'positions': 'embeddings.position_embeddings.weight',
  'types': 'embeddings.token_type_embeddings.weight',
  'embedding_norm/scale': 'embeddings.LayerNorm.weight',
  'embedding_norm/bias': 'embeddings.LayerNorm.bias',
  **{
    f'layers/attention/{ours}{end}': f'encoder.layer.{{layer}}.attention.{theirs}.{kind}'
    for ours, theirs in (
      ('query', 'self.query'),
      ('key', 'self.key'),
      ('value', 'self.value'),
      ('out', 'output.dense'),
    )
    for end, kind in (('', 'weight'), ('_bias', 'bias'))
  },
  'layers/attention_norm/scale': 'encoder.layer.{layer}.attention.output.LayerNorm.weight',
  'layers/attention_norm/bias': 'encoder.layer.{layer}.attention.output.LayerNorm.bias',
  'layers/mlp/up': 'encoder.layer.{layer}.intermediate.dense.weight',
  'layers/mlp/up_bias': 'encoder.layer.{layer}.intermediate.dense.bias',
  'layers/mlp/down': 'encoder.layer.{layer}.output.dense.weight',
  'layers/mlp/down_bias': 'encoder.layer.{layer}.output.dense.bias',
  'layers/mlp_norm/scale': 'encoder.layer.{layer}.output.LayerNorm.weight',
  'layers/mlp_norm/bias': 'encoder.layer.{layer}.output.LayerNorm.bias',
}
