"""Fine-tuning: an adapter that is trained on a user's own questions, pictures and answers.

In: a model's name, rows of JSONL. Out: a folder of PEFT with the best adapter, a log, the state that it goes on from.
"""
