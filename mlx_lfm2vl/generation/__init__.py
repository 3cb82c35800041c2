"""From loaded objects to text: options, sampling, one prefill, one decode loop, pieces of text."""
