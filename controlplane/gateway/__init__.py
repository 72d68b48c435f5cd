"""The data plane: text in, text out. Auth, validation, tokens, admission, streaming for `/v1/*`.

Workers speak tokens, the gateway speaks text. It never imports torch or transformers.
"""
