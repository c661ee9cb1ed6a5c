"""`ppe-npu explore`: a page on which compression is seen.

state.py: what is chosen; sources.py: what is looked at; groups.py: what a model makes of it; session.py: what one
visitor looks at; words.py: numbers and groups in words; page.py: the page, which alone imports Gradio; policy.py: what
a browser may do for it.
"""
