#!/usr/bin/env python

# # A notebook that became a script

# In[1]:


from model import Dicing
from told import STEPS, begin, tell_loss, tell_states

if "get_ipython" in globals():
    get_ipython().run_line_magic("matplotlib", "inline")  # noqa: F821
begin()


# In[2]:


import torch
import torch.nn.functional as F

model = Dicing()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


# In[3]:


for epoch in range(2):
    for i in range(STEPS // 2):
        optimizer.zero_grad()
        loss = F.mse_loss(model(torch.randn(8, 20)), torch.randn(8, 1))
        loss.backward()
        optimizer.step()
        tell_loss(loss)


# In[ ]:


tell_states()
