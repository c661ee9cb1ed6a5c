"""`ppe-npu explore`: a web page that shows what a compression does.

state.py: the page's settings; sources.py: pictures and videos; groups.py: the model, its groups, costs and answers;
session.py: one visitor's state; words.py: groups and costs as text; page.py: the page itself, and the only file that
imports Gradio; policy.py: limits on what the browser may load.
"""
