"""The web page of ``restore serve``: restore photos in a browser, on this machine alone.

    server.py    the address, the limits, the headers, the end of the program
    layout.py    the page: what is on it and what happens when it is used (gradio)
    cards.py     pieces of HTML: the photo's facts, the cost of depths, progress, scores
    sessions.py  the photos of each open page, in temporary folders
    engine.py    the networks, the queue of work, progress and cancelling
    static/      photo.js: the two elements that the browser gets, where photos are dropped and where they are compared;
                 style.css, and compare.css of the second one
"""
