"""Tasks with typed results: boxes, points, text with its layout, fields of a schema, descriptions.

In: pictures, what is asked, a `Recipe` of the checkpoint. Out: `GenerationRequest`s, and results of their answers."""
