"""What any run file has, for those that a test writes by hand."""

TRAINING = """\
sequence_len: 512
micro_batch_size: 2
gradient_accumulation_steps: 1
num_epochs: 1
learning_rate: 0.0001
output_dir: out
"""
