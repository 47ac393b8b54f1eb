"""Networks: base models, draft and target head. Tensors in, tensors out."""
