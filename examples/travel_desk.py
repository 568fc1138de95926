from agents import function_tool, Agent, ModelSettings, TResponseInputItem, Runner, RunConfig, trace
from pydantic import BaseModel

# Tool definitions
@function_tool
def seats_left(flight: str):
  return f"{flight}: 4 seats left"

class TriageSchema(BaseModel):
  category: str


triage = Agent(
  name="Triage",
  instructions="Say whether the traveller wants to book or to complain. The category is booking or complaint.",
  model="gpt-4.1-mini",
  output_type=TriageSchema,
  model_settings=ModelSettings(
    temperature=0,
    store=True
  )
)


booking = Agent(
  name="Booking",
  instructions="Help the traveller to book. Look up how many seats are left before you offer a flight.",
  model="gpt-4.1",
  tools=[
    seats_left
  ],
  model_settings=ModelSettings(
    temperature=1,
    parallel_tool_calls=True,
    store=True
  )
)


complaint = Agent(
  name="Complaint",
  instructions="Apologise, and ask for what is missing to settle the complaint.",
  model="gpt-4.1",
  model_settings=ModelSettings(
    temperature=1,
    store=True
  )
)


class WorkflowInput(BaseModel):
  input_as_text: str


# Main code entrypoint
async def run_workflow(workflow_input: WorkflowInput):
  with trace("Travel desk"):
    workflow = workflow_input.model_dump()
    conversation_history: list[TResponseInputItem] = [
      {
        "role": "user",
        "content": [
          {
            "type": "input_text",
            "text": workflow["input_as_text"]
          }
        ]
      }
    ]
    triage_result_temp = await Runner.run(
      triage,
      input=[
        *conversation_history
      ],
      run_config=RunConfig(trace_metadata={
        "__trace_source__": "agent-builder",
        "workflow_id": "wf_example"
      })
    )
    triage_result = {
      "output_text": triage_result_temp.final_output.json(),
      "output_parsed": triage_result_temp.final_output.model_dump()
    }
    if triage_result["output_parsed"]["category"] == "booking":
      booking_result_temp = await Runner.run(
        booking,
        input=[
          *conversation_history
        ],
        run_config=RunConfig(trace_metadata={
          "__trace_source__": "agent-builder",
          "workflow_id": "wf_example"
        })
      )

      conversation_history.extend([item.to_input_item() for item in booking_result_temp.new_items])

      booking_result = {
        "output_text": booking_result_temp.final_output_as(str)
      }
      return booking_result
    else:
      complaint_result_temp = await Runner.run(
        complaint,
        input=[
          *conversation_history
        ],
        run_config=RunConfig(trace_metadata={
          "__trace_source__": "agent-builder",
          "workflow_id": "wf_example"
        })
      )

      conversation_history.extend([item.to_input_item() for item in complaint_result_temp.new_items])

      complaint_result = {
        "output_text": complaint_result_temp.final_output_as(str)
      }
      return complaint_result
