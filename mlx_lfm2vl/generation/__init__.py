"""From a request to text: encoding, prefill, decoding, sampling, the scheduler, caches, chats and batches.

In: model, processor, `GenerationRequest`. Out: `GenerationResponse`, piece by piece. No thread starts here.
"""
